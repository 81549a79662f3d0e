"""`segkd report`: what runs have shown, as one HTML page and as Markdown."""
