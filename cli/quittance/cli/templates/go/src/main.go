// Counts the words of a text and finds the most frequent one.
//
// Input: {"text": "..."}
//
// Output: {"words":6,"unique":4,"top":"to","times":2}
//
// A word has letters and digits, and every character beyond ASCII counts as a letter; words are compared in lower case.
//
// Failure: exit code 2 for a text without words or another input, 1 if the output fails.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"
)

const badInput = 2

type input struct {
	Text *string `json:"text"`
}

type output struct {
	Words  int    `json:"words"`
	Unique int    `json:"unique"`
	Top    string `json:"top"`
	Times  int    `json:"times"`
}

func main() {
	text, err := read(os.Stdin)
	if err != nil {
		fail(badInput, err)
	}
	found, err := count(text)
	if err != nil {
		fail(badInput, err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		fail(1, err)
	}
}

func fail(code int, err error) {
	fmt.Fprintf(os.Stderr, "agent: %v\n", err)
	os.Exit(code)
}

func read(stdin io.Reader) (string, error) {
	decoder := json.NewDecoder(stdin)
	decoder.DisallowUnknownFields()
	var sent input
	if err := decoder.Decode(&sent); err != nil || sent.Text == nil {
		return "", errors.New(`the input must be {"text": "..."}`)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return "", errors.New("the input must be one JSON document")
	}
	return *sent.Text, nil
}

func count(text string) (output, error) {
	words := strings.FieldsFunc(strings.ToLower(text), func(r rune) bool {
		return !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || r >= utf8.RuneSelf)
	})
	if len(words) == 0 {
		return output{}, errors.New("the text has no words")
	}
	times := map[string]int{}
	for _, word := range words {
		times[word]++
	}
	top := words[0]
	for _, word := range words { // not over the map, whose order is random
		if times[word] > times[top] {
			top = word
		}
	}
	return output{len(words), len(times), top, times[top]}, nil
}
