"""Which noise prior a data set wants: its clips inverted by an image model, and what their noise maps share."""
