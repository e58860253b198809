package org.meteora.data;

import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.meteora.UserException;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Jsonl;
import org.meteora.io.Texts;

/** One example of a task: a prompt {@code [INST] … [/INST]\n} and its bare answer. */
public record Sample(String prompt, String response) {
  /** Half a surrogate pair, which UTF-8 cannot say, becomes U+FFFD. */
  public Sample {
    prompt = Texts.wellFormed(prompt);
    response = Texts.wellFormed(response);
  }

  /**
   * Reads a JSONL file of {@code {"prompt": …, "response": …}}.
   *
   * @throws UserException naming file and line of what is wrong, or that the file has no sample
   */
  public static List<Sample> read(Path file) {
    var samples =
        Jsonl.read(
            file,
            (node, where) ->
                new Sample(Jsonl.text(node, "prompt", where), Jsonl.text(node, "response", where)));
    if (samples.isEmpty()) {
      throw new UserException(file + ": no sample in it");
    }
    return samples;
  }

  /** The lines, from 1, that the samples of a file are on; for messages. */
  public static List<Integer> lines(Path file) {
    var result = new ArrayList<Integer>();
    Jsonl.forEach(file, (node, number) -> result.add(number));
    return result;
  }

  /** The sample as one line of JSON, with the newline. */
  public byte[] line() {
    var node = Jsonl.JSON.createObjectNode().put("prompt", prompt).put("response", response);
    return (node + "\n").getBytes(StandardCharsets.UTF_8);
  }

  /** Writes a JSONL file, atomically. */
  public static void write(Path file, Iterable<Sample> samples) {
    AtomicFiles.writeStream(
        file,
        out -> {
          for (var sample : samples) {
            out.write(sample.line());
          }
        });
  }
}
