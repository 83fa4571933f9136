"""Where tables come from: agency files, the published arrays, and a synthetic world."""
