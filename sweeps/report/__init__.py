"""Files for readers: HTML, Markdown, LaTeX, figures."""
