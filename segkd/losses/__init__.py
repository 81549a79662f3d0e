"""Task losses: student against labels."""
