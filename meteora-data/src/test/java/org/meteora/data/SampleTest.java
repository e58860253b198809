package org.meteora.data;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.constraints.Size;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;

class SampleTest {
  @TempDir Path folder;

  @Test
  void mistakesNameFileAndLine() throws IOException {
    var good = "{\"prompt\":\"p\",\"response\":\"r\"}\n";
    assertError(good + "{\"prompt\":\"p\",\n", ":2: not valid JSON");
    assertError(good + "\n" + good.strip() + good, ":3: not valid JSON");
    assertError(good + "[1]\n", ":2: a JSON object was expected");
    assertError("{\"prompt\":\"p\"}\n", ":1: the field \"response\" is missing");
    assertError("{\"prompt\":1,\"response\":\"r\"}\n", ":1: the field \"prompt\" must be a string");
    assertError("\n\n", "no sample");
    assertThatThrownBy(() -> Sample.read(folder.resolve("none.jsonl")))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("none.jsonl");
  }

  private void assertError(String text, String message) throws IOException {
    var file = Files.writeString(folder.resolve("s.jsonl"), text);
    assertThatThrownBy(() -> Sample.read(file))
        .isInstanceOf(UserException.class)
        .hasMessageContaining(message)
        .hasMessageContaining("s.jsonl");
  }

  @Property(tries = 300)
  void whatIsWrittenIsReadBack(@ForAll("samples") @Size(min = 1, max = 5) List<Sample> samples)
      throws IOException {
    var file = Files.createTempFile("samples", ".jsonl");
    try {
      Sample.write(file, samples);
      assertThat(Sample.read(file)).isEqualTo(samples);
    } finally {
      Files.delete(file);
    }
  }

  @Provide
  Arbitrary<List<Sample>> samples() {
    var text =
        Arbitraries.strings()
            .ofMaxLength(20)
            .filter(s -> s.codePoints().noneMatch(c -> c >= 0xd800 && c <= 0xdfff));
    return net.jqwik.api.Combinators.combine(text, text).as(Sample::new).list();
  }

  @Property(tries = 500)
  void anyBytesAreSamplesOrOneLineOfError(@ForAll("broken") byte[] bytes) throws IOException {
    var file = Files.createTempFile("samples", ".jsonl");
    try {
      Files.write(file, bytes);
      assertThat(Sample.read(file)).isNotEmpty();
    } catch (UserException e) {
      assertThat(e.getMessage()).contains(file.toString()).doesNotContain("\n", "\r");
    } finally {
      Files.delete(file);
    }
  }

  /** A good file with a few of its bytes replaced, or no file at all but noise. */
  @Provide
  Arbitrary<byte[]> broken() {
    var good =
        "{\"prompt\": \"a\\u00e9ä🦉\", \"response\": \"b\"}\n{\"prompt\":\"\",\"response\":\"\"}\n"
            .getBytes(java.nio.charset.StandardCharsets.UTF_8);
    var damaged =
        net.jqwik.api.Combinators.combine(
                Arbitraries.integers().between(0, good.length - 1).list().ofMaxSize(4),
                Arbitraries.bytes(),
                Arbitraries.integers().between(0, good.length))
            .as(
                (places, value, length) -> {
                  var bytes = java.util.Arrays.copyOf(good, length);
                  places.stream().filter(p -> p < length).forEach(p -> bytes[p] = value);
                  return bytes;
                });
    var noise = Arbitraries.bytes().array(byte[].class).ofMaxSize(60);
    return Arbitraries.oneOf(damaged, noise);
  }
}
