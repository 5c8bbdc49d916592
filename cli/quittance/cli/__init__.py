"""The command `quittance`: see main.py."""
