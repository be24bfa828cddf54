"""From a trainer or a model to an adapted model and its report: the only room that knows every stage."""
