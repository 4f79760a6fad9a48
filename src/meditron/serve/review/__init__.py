"""Blinded review: people compare the answers of two or more models side by side and rate each of them.

rubric      scales, kinds of harm and of bias, categories of questions: data with a version and a hash
questions   the question set
records     types of the database
store       the database of reviews, answers, raters and ratings
blinding    order of the questions and sides of the answers for a rater
ratings     checks of a rater's input
answers     generation and import of the answers, identity of the models
statistics  means, preferences, agreement
export      rows for other programs
routes      pages and API
"""
