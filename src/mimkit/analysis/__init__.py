"""Analysis: trained models and pictures enter, what each layer and head does with them leaves as numbers."""
