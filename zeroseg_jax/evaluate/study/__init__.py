"""The human study: people compare two models on images with free labels."""
