// Invoice checks the lines of an invoice and adds them up for each tax rate.
//
// Input: a JSON object. Amounts are decimal strings with up to two places,
// a tax rate is in per cent:
//
//	{"currency": "EUR", "lines": [
//	  {"description": "Chair", "quantity": 2, "unit_price": "49.90", "tax_rate": "19"}]}
//
// Output: compact JSON, the lowest tax rate first. The tax is rounded once for
// each rate, half a cent up:
//
//	{"currency":"EUR","lines":1,"rates":[{"tax_rate":"19.00","net":"99.80","tax":"18.96",
//	 "gross":"118.76"}],"net":"99.80","tax":"18.96","gross":"118.76"}
//
// Failure: exit code 1, no output, and one line on stderr for each mistake.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode/utf8"
)

// With these limits no sum can overflow an int64.
const (
	linesMax       = 10_000
	quantityMax    = 100_000
	priceCentsMax  = 100_000_000 // 1,000,000.00
	rateMax        = 10_000      // 100.00 %, in hundredths of a per cent
	descriptionMax = 500
)

type invoice struct {
	Currency string `json:"currency"`
	Lines    []line `json:"lines"`
}

type line struct {
	Description string `json:"description"`
	Quantity    int64  `json:"quantity"`
	UnitPrice   string `json:"unit_price"`
	TaxRate     string `json:"tax_rate"`
}

type amounts struct {
	Net   string `json:"net"`
	Tax   string `json:"tax"`
	Gross string `json:"gross"`
}

type rateTotal struct {
	TaxRate string `json:"tax_rate"`
	amounts
}

type report struct {
	Currency string      `json:"currency"`
	Lines    int         `json:"lines"`
	Rates    []rateTotal `json:"rates"`
	amounts
}

func main() {
	answer, mistakes := run(os.Stdin)
	for _, mistake := range mistakes {
		fmt.Fprintln(os.Stderr, "invoice:", mistake)
	}
	if len(mistakes) > 0 {
		os.Exit(1)
	}
	if _, err := os.Stdout.Write(answer); err != nil {
		fmt.Fprintln(os.Stderr, "invoice: cannot write the output")
		os.Exit(1)
	}
}

func run(input io.Reader) (answer []byte, mistakes []string) {
	bill, err := decode(input)
	if err != nil {
		return nil, []string{err.Error()}
	}
	netByRate, mistakes := check(bill)
	if len(mistakes) > 0 {
		return nil, mistakes
	}
	answer, err = json.Marshal(total(bill, netByRate))
	if err != nil {
		return nil, []string{err.Error()}
	}
	return append(answer, '\n'), nil
}

// decode reads exactly one JSON object with known names only.
func decode(input io.Reader) (bill invoice, err error) {
	decoder := json.NewDecoder(input)
	decoder.DisallowUnknownFields()
	if err = decoder.Decode(&bill); err != nil {
		return bill, fmt.Errorf("the input is not an invoice in JSON: %w", err)
	}
	if _, err = decoder.Token(); !errors.Is(err, io.EOF) {
		return bill, errors.New("something follows the JSON value")
	}
	return bill, nil
}

// check returns the net cents of each tax rate, and every mistake it finds.
func check(bill invoice) (netByRate map[int64]int64, mistakes []string) {
	note := func(format string, values ...any) {
		mistakes = append(mistakes, fmt.Sprintf(format, values...))
	}
	if !isCurrency(bill.Currency) {
		note("currency must be three capital letters")
	}
	if len(bill.Lines) == 0 || len(bill.Lines) > linesMax {
		note("lines must hold 1 to %d entries", linesMax)
		return nil, mistakes
	}
	netByRate = map[int64]int64{}
	for i, entry := range bill.Lines {
		if length := utf8.RuneCountInString(entry.Description); length == 0 || length > descriptionMax {
			note("line %d: description must have 1 to %d characters", i+1, descriptionMax)
		}
		if entry.Quantity < 1 || entry.Quantity > quantityMax {
			note("line %d: quantity must be 1 to %d", i+1, quantityMax)
		}
		price, priceGood := parseHundredths(entry.UnitPrice, priceCentsMax)
		if !priceGood {
			note(`line %d: unit_price must be a string like "49.90", up to %s`, i+1, hundredths(priceCentsMax))
		}
		rate, rateGood := parseHundredths(entry.TaxRate, rateMax)
		if !rateGood {
			note(`line %d: tax_rate must be a string like "19" or "5.50", up to 100`, i+1)
		}
		if priceGood && rateGood {
			netByRate[rate] += entry.Quantity * price
		}
	}
	return netByRate, mistakes
}

func total(bill invoice, netByRate map[int64]int64) report {
	rates := make([]int64, 0, len(netByRate))
	for rate := range netByRate {
		rates = append(rates, rate)
	}
	slices.Sort(rates) // the order of a map is random: without sorting, two runs could differ

	answer := report{Currency: bill.Currency, Lines: len(bill.Lines)}
	var netSum, taxSum int64
	for _, rate := range rates {
		net := netByRate[rate]
		tax := taxOf(net, rate)
		answer.Rates = append(answer.Rates, rateTotal{hundredths(rate), amountsOf(net, tax)})
		netSum += net
		taxSum += tax
	}
	answer.amounts = amountsOf(netSum, taxSum)
	return answer
}

// taxOf is net * rate / 10000, half a cent rounded up, without overflow.
func taxOf(netCents, rate int64) int64 {
	return netCents/10_000*rate + (netCents%10_000*rate+5_000)/10_000
}

func amountsOf(net, tax int64) amounts {
	return amounts{Net: hundredths(net), Tax: hundredths(tax), Gross: hundredths(net + tax)}
}

func hundredths(value int64) string {
	return fmt.Sprintf("%d.%02d", value/100, value%100)
}

// parseHundredths parses "12", "12.5" or "12.50": no sign, no exponent, no float.
func parseHundredths(text string, most int64) (value int64, good bool) {
	whole, places, dotted := strings.Cut(text, ".")
	if whole == "" || len(whole) > 9 || len(places) > 2 || (dotted && places == "") {
		return 0, false
	}
	for _, digit := range whole + (places + "00")[:2] {
		if digit < '0' || digit > '9' {
			return 0, false
		}
		value = value*10 + int64(digit-'0')
	}
	return value, value <= most
}

func isCurrency(code string) bool {
	return len(code) == 3 && strings.Trim(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
}
