"""Loads incidents with dlt's source for REST interfaces. Arguments: the instance, a user, the password, a database."""

import os
import sys
import time

os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"

import dlt
from dlt.sources.rest_api import rest_api_source

url, user, password, database = sys.argv[1:]
source = rest_api_source(
    {
        "client": {
            "base_url": f"{url}/api/now/table/",
            "auth": {"type": "http_basic", "username": user, "password": password},
            "paginator": {"type": "header_link"},
        },
        "resources": [
            {
                "name": "incident",
                "endpoint": {
                    "path": "incident",
                    "data_selector": "result",
                    "params": {
                        "sysparm_query": "ORDERBYsys_id",
                        "sysparm_limit": 1000,
                        "sysparm_display_value": "all",
                        "sysparm_exclude_reference_link": "true",
                    },
                },
            }
        ],
    }
)
pipeline = dlt.pipeline(
    pipeline_name="servicenow",
    destination=dlt.destinations.postgres(credentials=database),
    dataset_name="dlt",
)
began = time.perf_counter()
pipeline.run(source)
seconds = time.perf_counter() - began
with pipeline.sql_client() as client:
    rows = client.execute_sql("SELECT count(*) FROM incident")[0][0]
print(rows / seconds)
