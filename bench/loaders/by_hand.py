"""Loads incidents by hand: pages by sys_id, each copied into Postgres and committed.

Arguments: the instance, a user, the password, and a database that has the table by_hand: a column of text for each
field, or two where people see something else than what is stored, f for the label and f_value for the value.
"""

import csv
import io
import sys
import time

import psycopg2
import requests

PAGE = 1000

url, user, password, database = sys.argv[1:]
session = requests.Session()
session.auth = (user, password)
postgres = psycopg2.connect(database)
cursor = postgres.cursor()
cursor.execute("SELECT attname FROM pg_attribute WHERE attrelid = 'by_hand'::regclass AND attnum > 0 ORDER BY attnum")
columns = [name for (name,) in cursor]


def source(column):
    """The field, and the side of it, that a column shows."""
    if column + "_value" in columns:
        return column, "display_value"
    if column.endswith("_value") and column.removesuffix("_value") in columns:
        return column.removesuffix("_value"), "value"
    return column, "value"


sources = [source(column) for column in columns]
fields = ",".join(dict.fromkeys(field for field, _ in sources))

began = time.perf_counter()
rows, last = 0, ""
while True:
    answer = session.get(
        f"{url}/api/now/table/incident",
        params={
            "sysparm_query": f"sys_id>{last}^ORDERBYsys_id" if last else "ORDERBYsys_id",
            "sysparm_fields": fields,
            "sysparm_limit": PAGE,
            "sysparm_display_value": "all",
            "sysparm_exclude_reference_link": "true",
            "sysparm_no_count": "true",
            "sysparm_suppress_pagination_header": "true",
        },
        headers={"Accept": "application/json"},
    )
    answer.raise_for_status()
    page = answer.json()["result"]
    if not page:
        break
    text = io.StringIO()
    csv.writer(text).writerows([record[field][side] for field, side in sources] for record in page)
    text.seek(0)
    cursor.copy_expert("COPY by_hand FROM STDIN (FORMAT csv)", text)
    postgres.commit()
    rows += len(page)
    last = page[-1]["sys_id"]["value"]
print(rows / (time.perf_counter() - began))
