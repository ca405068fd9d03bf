"""The tests of the whole repository. A regular package, so that no installed one of the same name can take its place."""
