"""What an output must be for its agent to be paid. Pure."""
