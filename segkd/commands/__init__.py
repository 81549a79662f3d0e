"""The commands; ``segkd.cli`` declares them and imports these modules when they are called."""
