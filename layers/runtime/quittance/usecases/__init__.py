"""What the functions do: each module tells the use case of the function of the same name."""
