"""What the results say: tables of results, inference, comparison."""
