"""The model: images and a Mask enter, tokens and predictions for every patch leave."""
