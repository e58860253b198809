package org.meteora.eval.routes;

import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.function.Function;
import java.util.stream.IntStream;
import org.meteora.UserException;
import org.meteora.data.Sample;
import org.meteora.data.composite.CompositeTask;
import org.meteora.generate.GenerationConfig;
import org.meteora.generate.Request;
import org.meteora.generate.TokenGenerator;
import org.meteora.generate.Tokenizer;
import org.meteora.io.AtomicFiles;
import org.meteora.io.FolderNames;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** Runs one prompt with its routing recorded, and writes the four reports of a trace. */
public final class Routes {
  private static final Logger LOG = LoggerFactory.getLogger(Routes.class);

  private Routes() {}

  /**
   * Generates the answer to a prompt and records every gate.
   *
   * @param generator the model's
   * @param parts finds the tasks' stretches once the tokens are known
   * @throws UserException when the prompt is empty, or the model has no gates
   */
  public static RoutingTrace run(
      TokenGenerator generator,
      Tokenizer tokenizer,
      List<String> adapters,
      String prompt,
      GenerationConfig config,
      Function<List<RoutedToken>, List<Part>> parts,
      Map<String, Object> settings) {
    int[] ids = tokenizer.encode(prompt, true);
    if (ids.length == 0) {
      throw new UserException("the prompt is empty: there is no token to route");
    }
    var recorder = new RoutingRecorder();
    var request = new Request(ids, config, 0).listenedBy(recorder);
    var answer = generator.generate(List.of(request), (row, token) -> {}).getFirst();
    int[] all = IntStream.concat(IntStream.of(ids), IntStream.of(answer)).toArray();
    var tokens =
        RoutedToken.of(each -> tokenizer.decode(each, false), tokenizer::token, all, ids.length);
    var trace = recorder.trace(adapters, tokens, parts.apply(tokens), settings);
    if (trace.routedTokens() == 0) {
      throw new UserException(
          "this model chose no adapters: it has no gates, or MOELINEAR_SINGLE_MOE_LORA is set");
    }
    return trace;
  }

  /**
   * The prompt of one test sample.
   *
   * @param datasets the folder of all tasks' data
   * @param index of the sample, from 0
   * @throws UserException when the task has no test data there, or not so many samples
   */
  public static String prompt(Path datasets, String task, int index) {
    var file = datasets.resolve(FolderNames.require("the task", task)).resolve("test.jsonl");
    var samples = Sample.read(file);
    if (index < 0 || index >= samples.size()) {
      throw new UserException("%s has samples 0 to %s, not %s", file, samples.size() - 1, index);
    }
    return samples.get(index).prompt();
  }

  /** The parts of a task's text: of a composite task, one for each question and answer. */
  public static List<Part> parts(Path datasets, String task, List<RoutedToken> tokens) {
    return CompositeTask.find(task, datasets)
        .map(composite -> Part.composite(composite.tasks(), tokens))
        .orElseGet(() -> Part.single(task, tokens));
  }

  /** Writes {@code routes.html}, {@code routes.png}, {@code routes.json} and {@code routes.csv}. */
  public static void write(RoutingTrace trace, String title, Path folder) {
    AtomicFiles.requireWritableFolder(folder);
    RoutesData.writeJson(trace, folder.resolve("routes.json"));
    RoutesData.writeCsv(trace, folder.resolve("routes.csv"));
    RoutesHtml.write(trace, title, folder.resolve("routes.html"));
    picture(() -> RoutesPng.write(trace, title, folder.resolve("routes.png")));
  }

  /** A Java without fonts cannot draw text: the other reports are still worth having. */
  static void picture(Runnable draw) {
    try {
      draw.run();
    } catch (UserException e) {
      throw e;
    } catch (RuntimeException | LinkageError | InternalError e) {
      LOG.warn(
          "no PNG was drawn: this Java cannot draw text here (fontconfig or a font missing?): {}",
          e.toString());
    }
  }
}
