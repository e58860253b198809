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
pq.write_table(
    pa.table(
        {
            "question": [f"How much is {i} + 1? 🦉" for i in range(10)],
            "answer": [f"{i} + 1 = {i + 1}\n#### {i + 1}" for i in range(10)],
        }
    ),
    here / "gsm8k.parquet",
    compression="snappy",
)
pq.write_table(
    pa.table(
        {
            "instruction": [f"Do {i}." for i in range(10)],
            "input": [None if i % 3 == 0 else "" if i % 3 == 1 else f"with {i}" for i in range(10)],
            "output": [f"Done {i}." for i in range(10)],
            "text": [None] * 9 + ["unused"],
        }
    ),
    here / "alpaca.parquet",
    compression="zstd",
)
pq.write_table(
    pa.table({"article": [f"Article {i}." for i in range(10)], "highlights": [f"Gist {i}." for i in range(10)]}),
    here / "cnn_dailymail.parquet",
    compression="gzip",
)
pq.write_table(
    pa.table(
        {
            "id": [str(i) for i in range(10)],
            "translation": [{k: f"{k} {i}" for k in ("de", "en", "es", "it")} for i in range(10)],
        }
    ),
    here / "translations.parquet",
)
nulls = bigbench(4, 0).to_pylist()
nulls[0]["multiple_choice_targets"] = None  # no list
nulls[1]["multiple_choice_targets"] = ["a", None, ""]  # no text in a list
nulls[2]["targets"] = [None]
nulls[3]["inputs"] = None
nulls[3]["idx"] = None
pq.write_table(pa.Table.from_pylist(nulls, schema=bigbench(1, 0).schema), here / "bigbench-nulls.parquet")

# one value of 300 MB, which zstd packs into 30 KB
pq.write_table(
    pa.table({"inputs": ["a" * 300_000_000]}), here / "bomb.parquet", compression="zstd", use_dictionary=False,
    write_statistics=False)
