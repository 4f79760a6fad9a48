"""Search of texts for benchmark questions: normalized words, an index of questions, exact comparison."""
