"""What the commands do; ``segkd.cli`` declares them and imports these modules when called."""
