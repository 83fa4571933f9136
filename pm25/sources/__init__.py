"""Sources of tables: agency files, the published arrays, and a synthetic world."""
