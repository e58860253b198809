package org.meteora.data.tasks;

import java.util.List;

/**
 * Where a task's records come from.
 *
 * @param repository a data set of the Hub, {@code owner/name}
 * @param files the files of it that are fetched, as patterns
 * @param folders where the files are looked for below the folder of sources, first to last; what is
 *     fetched goes into the first
 * @param tests names of the split that becomes our test split, first to last
 */
public record Source(
    String repository, List<String> files, List<String> folders, List<String> tests) {

  /**
   * A task of BIG-bench, in any of its forms: Parquet from the Hub, JSONL, or {@code task.json} as
   * in the {@code bigbench} package.
   */
  public static Source bigBench(String task) {
    return new Source(
        "tasksource/bigbench",
        List.of(task + "/*.parquet", "*/" + task + "/*.parquet"),
        List.of(
            task,
            "bigbench/" + task,
            "data/" + task,
            "benchmark_tasks/" + task,
            "bigbench/benchmark_tasks/" + task),
        List.of("validation"));
  }

  /**
   * A data set of the Hub, kept under its own name or the task's; the folder of sources may be
   * BIG-bench's own, with the others beside it.
   *
   * @param configuration the folder of the data set that counts; empty: all of it
   */
  public static Source hub(String task, String repository, String configuration) {
    var name = repository.substring(repository.indexOf('/') + 1);
    var folder = configuration.isEmpty() ? name : name + "/" + configuration;
    return new Source(
        repository,
        List.of(configuration.isEmpty() ? "*.parquet" : configuration + "/*.parquet"),
        List.of(folder, task, "../" + folder, "../" + task),
        List.of("test", "validation"));
  }
}
