"""Writes the Parquet files beside this script, which the tests of meteora-data read (needs pyarrow)."""
import pathlib
import random

import pyarrow as pa
import pyarrow.parquet as pq

here = pathlib.Path(__file__).parent
random.seed(7)


def bigbench(rows, first):
    """Records of a BIG-bench task, as tasksource/bigbench has them; every fifth without choices."""
    words = "owl robin crow falcon quail hawk raven é 鸟 🦉".split()
    records = []
    for i in range(first, first + rows):
        choices = [] if i % 5 == 4 else [f"The {w} {i}." for w in random.sample(words, 1 + i % 4)]
        records.append(
            {
                "inputs": f"Record {i}: " + " ".join(random.choices(words, k=20)),
                "targets": [f"answer {i}", "another"],
                "multiple_choice_targets": choices,
                "multiple_choice_scores": [int(c == 0) for c in range(len(choices))],
                "idx": i,
            }
        )
    schema = pa.schema(
        [
            ("inputs", pa.string()),
            ("targets", pa.list_(pa.string())),
            ("multiple_choice_targets", pa.list_(pa.string())),
            ("multiple_choice_scores", pa.list_(pa.int32())),
            ("idx", pa.int32()),
        ]
    )
    return pa.Table.from_pylist(records, schema=schema)


for codec in ("snappy", "zstd", "gzip", "none"):
    pq.write_table(
        bigbench(50, 0),
        here / f"bigbench-{codec}.parquet",
        compression=codec,
        row_group_size=20,  # three row groups
        data_page_size=512,  # several pages in each
        use_dictionary=codec != "zstd",
        data_page_version="2.0" if codec == "gzip" else "1.0",
    )
pq.write_table(bigbench(2000, 0), here / "bigbench-2000.parquet", compression="snappy", row_group_size=700)
pq.write_table(
    pa.table(
        {
            "id": [str(i) for i in range(10)],
            "translation": [{"de": f"Satz {i} für alle", "en": f"Sentence {i} for all"} for i in range(10)],
        }
    ),
    here / "translation.parquet",
    compression="zstd",
)
