"""Search of the corpus for the questions of the benchmarks that the recipe evaluates on."""
