"""How does a bundle classify in a browser alone? A static folder: the try page, the graph, ONNX Runtime Web.

    folder.write(bundle, out, runtime.found(None))      # `tailguard web BUNDLE --out DIR`

The page is that of the service; scripts/backend.js stands in for the service, and a worker decodes, runs and decides.
"""
