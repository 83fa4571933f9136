"""The MLflow view of the store.

MLflow reads these settings when it is imported, so they are set before any module of this package imports it.
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# With MLflow's defaults, a server that does not answer would delay the end of a run by minutes per request.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# A busy server may ask to come back in an hour.
os.environ.setdefault("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", "false")
# Otherwise MLflow prints a URL at the end of each run, and asks the server twice to build it.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
