"""The only SQL of the dispatcher: connecting, migrating, and one file per noun."""
