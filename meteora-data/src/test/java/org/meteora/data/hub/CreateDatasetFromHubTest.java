package org.meteora.data.hub;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.List;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.data.command.CreateDatasetCommand;
import org.meteora.data.source.SourceFetcher;
import org.meteora.data.tasks.Tasks;
import picocli.CommandLine;

/** All tasks on a fresh machine: every source comes from the server. */
class CreateDatasetFromHubTest {
  @TempDir Path folder;

  @Test
  void allTasksAreFetchedAndMadeTheSameTwice() throws Exception {
    try (var server = new FakeHub()) {
      server.byRepository = true;
      for (var task : Tasks.all()) {
        if (task.source().repository().equals("tasksource/bigbench")) {
          for (var split : List.of("train", "validation")) {
            add(server, "tasksource/bigbench/" + task.name() + "/" + split, "bigbench-snappy");
          }
        }
      }
      add(server, "tatsu-lab/alpaca/data/train", "alpaca");
      for (var split : List.of("train", "test")) {
        add(server, "openai/gsm8k/main/" + split, "gsm8k");
        add(server, "openai/gsm8k/socratic/" + split, "translation");
        add(server, "abisee/cnn_dailymail/3.0.0/" + split, "cnn_dailymail");
      }
      for (var pair : List.of("de-en", "en-es", "en-it", "de-es")) {
        add(server, "Helsinki-NLP/news_commentary/" + pair + "/train", "translations");
      }
      var hub = new HubClient(Hubs.settings(server, folder, HubSettings.Layout.DEFAULT));
      var online = create(new HubSourceFetcher(() -> hub), "one");
      assertThat(online.lines()).hasSize(Tasks.all().size());
      for (var task : Tasks.all()) {
        assertThat(online).containsPattern(task.name() + " +written .* sha256 [0-9a-f]{16}");
      }
      assertThat(online).containsPattern("gsm8k +written +10 train +10 test");
      assertThat(online).containsPattern("winowhy +written +50 train +50 test");
      int requests = server.requests.size();
      assertThat(create(new HubSourceFetcher(() -> hub), "two", "--offline")).isEqualTo(online);
      assertThat(server.requests).hasSize(requests);
    }
  }

  private static void add(FakeHub server, String name, String resource) throws IOException {
    try (var in =
        FakeHub.class.getResourceAsStream("/org/meteora/data/source/" + resource + ".parquet")) {
      server.add(name + "-00000-of-00001.parquet", in.readAllBytes(), true);
    }
  }

  private String create(SourceFetcher fetcher, String target, String... more) {
    var before = System.out;
    var out = new ByteArrayOutputStream();
    System.setOut(new PrintStream(out, true, StandardCharsets.UTF_8));
    try {
      var arguments =
          List.of(
              "--task",
              "all",
              "--bigbench-dataset-dir",
              folder.resolve("sources").toString(),
              "--target-dir",
              folder.resolve(target).toString());
      var command = new CommandLine(new CreateDatasetCommand(fetcher));
      var all = new java.util.ArrayList<>(arguments);
      all.addAll(List.of(more));
      assertThat(command.execute(all.toArray(String[]::new)))
          .as(out.toString(StandardCharsets.UTF_8))
          .isZero();
    } finally {
      System.setOut(before);
    }
    // where a log goes to standard output, its lines are left out
    return out.toString(StandardCharsets.UTF_8)
        .lines()
        .filter(line -> !line.contains(" INFO "))
        .collect(Collectors.joining("\n"));
  }
}
