"""What a trained denoiser on disk is: files of weights, the card beside them, and their readers.

`hdm.model_files.opening.open_model` opens every form. Nothing here knows how a model is trained.
"""
