"""The models that come with onnxquant; the installed package holds the zoo's table only."""
