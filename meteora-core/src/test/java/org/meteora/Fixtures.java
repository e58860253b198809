package org.meteora;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Assumptions;
import org.meteora.io.Jsonl;

/**
 * The reference outputs beside the project; tests that need them are skipped where they are
 * missing.
 */
public final class Fixtures {
  private Fixtures() {}

  public static Path folder() {
    var path =
        System.getProperty("meteora.fixtures") != null
            ? Path.of(System.getProperty("meteora.fixtures"))
            : Path.of(System.getProperty("meteora.root", ".."))
                .resolve("../shared/fixtures")
                .normalize();
    Assumptions.assumeTrue(Files.isDirectory(path), "the reference fixtures are not at " + path);
    return path;
  }

  public static Path tinyLlama() {
    return folder().resolve("tiny-llama");
  }

  public static JsonNode expected() {
    return Jsonl.readFile(tinyLlama().resolve("expected.json"));
  }

  /** The expected prompts, without their left padding. */
  public static List<int[]> prompts() {
    var json = expected();
    var result = new ArrayList<int[]>();
    for (int row = 0; row < json.get("input_ids").size(); row++) {
      var ids = new ArrayList<Integer>();
      for (int i = 0; i < json.get("input_ids").get(row).size(); i++) {
        if (json.get("attention_mask").get(row).get(i).asInt() == 1) {
          ids.add(json.get("input_ids").get(row).get(i).asInt());
        }
      }
      result.add(ids.stream().mapToInt(Integer::intValue).toArray());
    }
    return result;
  }

  public static int[] ints(JsonNode node) {
    var result = new int[node.size()];
    for (int i = 0; i < result.length; i++) {
      result[i] = node.get(i).asInt();
    }
    return result;
  }
}
