package org.meteora.data.composite;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Test;
import org.meteora.UserException;
import org.meteora.data.Sample;

class CompositeMakerTest {
  @Test
  void rebuildsThePublishedPromptsByteForByte() {
    var fixtures =
        Path.of(System.getProperty("meteora.root", "..")).resolve("../shared/fixtures").normalize();
    Assumptions.assumeTrue(
        Files.isDirectory(fixtures), "the reference fixtures are not at " + fixtures);
    var published = Sample.read(fixtures.resolve("composite_10/test.jsonl"));
    var samples = new ArrayList<List<Sample>>();
    for (var task : CompositeTask.published(10).orElseThrow().tasks()) {
      samples.add(Sample.read(fixtures.resolve("datasets").resolve(task).resolve("samples.jsonl")));
    }
    var made = CompositeMaker.make(CompositeMaker.headerOf(published), samples, 200, false, 0);
    assertThat(made).hasSize(200).isEqualTo(published);
  }

  @Test
  void writesItsOwnHeader() {
    var a = new Sample("[INST] a? [/INST]\n", "yes");
    var b = new Sample("[INST] b? [/INST]\n", "two\nlines");
    var header = CompositeMaker.header(List.of(List.of(a, b), List.of(b, a)));
    assertThat(header)
        .contains("Example 1:", "Example 2:", "1. yes\n2. two lines\n", "1. two lines\n2. yes\n");
    var made = CompositeMaker.make(header, List.of(List.of(a, b), List.of(b)), 3, true, 7);
    assertThat(made)
        .hasSize(3)
        .isEqualTo(CompositeMaker.make(header, List.of(List.of(a, b), List.of(b)), 3, true, 7));
    assertThat(made.getFirst().prompt()).startsWith(header).endsWith(" [/INST]\n\n");
    assertThat(made.getFirst().response()).contains("@@@@\ntwo\nlines");
    assertThat(CompositeMaker.headerOf(made)).isEqualTo(header);
    assertThatThrownBy(() -> CompositeMaker.headerOf(made.subList(0, 1)))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("different prompts");
    assertThatThrownBy(
            () -> CompositeMaker.headerOf(List.of(new Sample("x", ""), new Sample("y", ""))))
        .isInstanceOf(UserException.class);
  }
}
