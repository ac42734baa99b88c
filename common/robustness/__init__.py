"""Tests networks trained on a synthetic set on corrupted or shifted test images.

Corrupted test images are those of CIFAR-10-C and ImageNet-C: the usual test images with noise, blur, weather and other
corruptions. Shifted test images are those of CIFAR-10.1: new images of CIFAR-10's classes.
"""
