"""The border with strangers: requests, answers, events and messages."""
