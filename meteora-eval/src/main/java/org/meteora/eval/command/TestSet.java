package org.meteora.eval.command;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.meteora.UserException;
import org.meteora.data.Sample;
import org.meteora.eval.EvalTask;

/**
 * The test data of a task.
 *
 * @param file {@code <target_dir>/<task>/test.jsonl}
 * @param samples its first, as many as are evaluated
 */
record TestSet(EvalTask task, Path file, List<Sample> samples) {
  /**
   * @param limit samples at most; null for all, or as many as the task has at most
   * @throws UserException when there is none, or it does not fit the task
   */
  static TestSet read(EvalTask task, Path targetDir, Integer limit) {
    var file = targetDir.resolve(task.name()).resolve("test.jsonl");
    if (!Files.isRegularFile(file)) {
      throw new UserException(
          "no test data for %s: there is no %s; make it with \"meteora %s\", or name"
              + " the folder of datasets by --target-dir",
          task.name(),
          file,
          task.parts().isEmpty() ? "create-dataset --task " + task.name() : "create-composite");
    }
    var samples = Sample.read(file);
    task.requireParts(samples.stream().map(Sample::response).toList());
    int count = Math.min(limit == null ? samples.size() : limit, samples.size());
    count = Math.min(count, task.limit().orElse(count));
    return new TestSet(task, file, samples.subList(0, count));
  }
}
