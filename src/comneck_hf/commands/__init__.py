"""What the commands of `comneck` do; `cli.py` only reads their options and prints."""
