"""The human study: which of two models do people prefer on images with free labels?"""
