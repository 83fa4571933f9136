"""Analysis of a study's results: tables of results, inference, comparison."""
