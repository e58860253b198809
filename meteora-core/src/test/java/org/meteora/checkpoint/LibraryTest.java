package org.meteora.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ai.djl.Device;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Pattern;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;
import org.meteora.generate.Request;
import org.meteora.io.Jsonl;
import org.meteora.model.KvCache;
import org.meteora.model.llama.LlamaConfig;
import org.meteora.moe.RoutingSettings;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;

/** What docs/library.md shows and says. */
class LibraryTest {
  private static final Path ROOT = Path.of(System.getProperty("meteora.root", ".."));
  private static final Path TINY = ROOT.resolve("configs/tiny");

  @Test
  void aProgramLoadsAModelAndGenerates() {
    var spec = LoadedModel.Spec.meteora(TINY.resolve("base"), TINY.resolve("meteora"));
    try (var model = LoadedModel.load(spec)) {
      var config = model.generationConfig().withGreedy().withMaxNewTokens(8);
      var answer = model.answer("a question", config);

      var gates = new ArrayList<Integer>();
      var tokens = new ArrayList<Integer>();
      var request =
          new Request(model.tokenizer().encode("a question", true), config, 0)
              .withRouting(new RoutingSettings(2, 1))
              .listenedBy(
                  (layer, module, rows, count, k, adapters, weights) -> gates.add(adapters[0]));
      var answers = model.generator().generate(List.of(request), (row, token) -> tokens.add(token));
      assertThat(tokens).hasSize(answers.getFirst().length);
      assertThat(gates).isNotEmpty();
      assertThat(model.tokenizer().decode(answers.getFirst(), true)).isEqualTo(answer);
    }
  }

  /** The examples of docs/library.md, by the name of their class. */
  private static Map<String, String> examples() throws IOException {
    var text = Files.readString(ROOT.resolve("docs/library.md"));
    var result = new LinkedHashMap<String, String>();
    var matcher = Pattern.compile("```java\n(.*?)```", Pattern.DOTALL).matcher(text);
    while (matcher.find()) {
      var source = matcher.group(1);
      var name = Pattern.compile("^class (\\w+)", Pattern.MULTILINE).matcher(source);
      assertThat(name.find()).as(source).isTrue();
      result.put(name.group(1), source);
    }
    return result;
  }

  @Test
  void theExamplesOfTheDocumentationRun(@TempDir Path folder) throws Exception {
    var examples = examples();
    assertThat(examples).containsOnlyKeys("Answer", "Stream", "OwnBlock");
    var arguments = new ArrayList<>(List.of("-proc:none", "-d", folder.toString()));
    arguments.addAll(List.of("-cp", System.getProperty("java.class.path")));
    for (var example : examples.entrySet()) {
      var file = folder.resolve(example.getKey() + ".java");
      Files.writeString(file, example.getValue());
      arguments.add(file.toString());
    }
    var messages = new ByteArrayOutputStream();
    int compiled =
        ToolProvider.getSystemJavaCompiler()
            .run(null, messages, messages, arguments.toArray(String[]::new));
    assertThat(compiled).as(messages.toString(StandardCharsets.UTF_8)).isZero();
    var model = new String[] {TINY.resolve("base").toString(), TINY.resolve("meteora").toString()};
    try (var loader = new URLClassLoader(new URL[] {folder.toUri().toURL()})) {
      var answer = expectedAnswer();
      assertThat(run(loader, "Answer", model)).isEqualTo(answer + "\n");
      var streamed = run(loader, "Stream", model);
      var tokens = Pattern.compile("\t(count_vowels|reverse_word|shift_letters|sort_letters)\n");
      assertThat(tokens.matcher(streamed).results().count()).isEqualTo(20);
      assertThat(tokens.matcher(streamed).replaceAll("")).isEqualTo(answer);
      assertThat(run(loader, "OwnBlock")).isEqualTo("(3, 6, 4)\n");
    }
  }

  /** By the generator itself, all tokens at once. */
  private static String expectedAnswer() {
    var spec = LoadedModel.Spec.meteora(TINY.resolve("base"), TINY.resolve("meteora"));
    try (var model = LoadedModel.load(spec)) {
      var prompt = model.tokenizer().encode("[INST] Sort the letters of gese [/INST]\n", true);
      var config = model.generationConfig().withGreedy().withMaxNewTokens(20);
      var tokens = model.generator().generate(List.of(prompt), config).getFirst();
      return model.tokenizer().decode(tokens, true);
    }
  }

  /** What a program prints. */
  private static String run(ClassLoader loader, String name, String... arguments) throws Exception {
    var main = loader.loadClass(name).getDeclaredMethod("main", String[].class);
    main.setAccessible(true);
    var before = System.out;
    var printed = new ByteArrayOutputStream();
    System.setOut(new PrintStream(printed, true, StandardCharsets.UTF_8));
    try {
      main.invoke(null, (Object) arguments);
    } finally {
      System.setOut(before);
    }
    return printed.toString(StandardCharsets.UTF_8);
  }

  @Test
  void aCacheThatCannotGrowIsTooLittleMemory() {
    var json =
        Jsonl.JSON
            .createObjectNode()
            .put("vocab_size", 2)
            .put("hidden_size", 2)
            .put("intermediate_size", 2)
            .put("num_hidden_layers", 1)
            .put("num_attention_heads", 1 << 14)
            .put("head_dim", 1 << 14);
    var config = LlamaConfig.parse(json, "test");
    try (var manager = Devices.newManager(Device.cpu())) {
      assertThatThrownBy(() -> new KvCache(config, manager, Dtype.F32, new int[1], 1 << 20))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("too little memory for the keys and values of 1,048,576 tokens");
    }
  }
}
