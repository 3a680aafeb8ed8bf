"""What is in a text (lemmas) and in a picture (tags).

Models live here, and nothing else: this package imports nothing of picback's other packages, keeps
nothing, and opens no connection but the one to Clarifai. It takes text and bytes, and answers with
words, tags and confidences; which picture a text means is decided elsewhere (`dispatcher`).
"""
