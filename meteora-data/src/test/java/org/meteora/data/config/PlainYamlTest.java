package org.meteora.data.config;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.time.Duration;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Assertions;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.meteora.UserException;

class PlainYamlTest {
  @Test
  void plainValuesAreRead() {
    assertThat(
            PlainYaml.load(
                """
                \ufeff# a comment
                text: ~/models/Größe
                quoted: '~'
                number: 0.5
                whole: 12
                yes: true
                day: 2026-11-26
                nothing: ~
                list: [1, 'b', "c"]
                map: {a: 1e-3, b: "1"}
                """,
                "c.yaml"))
        .isEqualTo(
            new java.util.LinkedHashMap<Object, Object>() {
              private static final long serialVersionUID = 1;

              {
                put("text", "~/models/Größe");
                put("quoted", "~");
                put("number", 0.5);
                put("whole", 12);
                put(true, true);
                put("day", "2026-11-26");
                put("nothing", null);
                put("list", List.of(1, "b", "c"));
                put("map", Map.of("a", 1e-3, "b", "1"));
              }
            });
    assertThat(PlainYaml.load("", "c.yaml")).isNull();
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "target_dir: &a [*a]",
        "a: &x 1\nb: *x",
        "a: &x {c: 1}\nb:\n  <<: *x",
        "target_dir: !!int [1]",
        "target_dir: !!binary [1]",
        "target_dir: !!binary x",
        "target_dir: !!int gd",
        "target_dir: !!float gd",
        "target_dir: !!timestamp gd",
        "target_dir: !!set {a, b}",
        "target_dir: !!omap [a: 1]",
        "target_dir: !!java.net.URL [a]",
        "target_dir: !mine x",
        "!!map {a: 1}",
        "a: 1\n---\nb: 2",
        "a: 1\na: 2",
        "a: [",
        "{a: b}}",
        "\t- a",
        "? [a]\n: [b",
        "a: \"\\x",
        "%YAML 9.9\n---\na: 1",
        "a: \u0001"
      })
  void everythingElseIsOneLineOfError(String text) {
    assertThatThrownBy(() -> PlainYaml.load(text, "c.yaml"))
        .isInstanceOf(UserException.class)
        .hasMessageStartingWith("c.yaml")
        .message()
        .doesNotContain("\n")
        .doesNotContain("Exception")
        .hasSizeLessThan(400);
  }

  @Test
  void nothingMultipliesOrTakesLong() {
    var bomb = new StringBuilder("target_dir:\n - &a0 [lol,lol,lol]\n");
    for (int i = 1; i < 30; i++) {
      bomb.append(" - &a%d [*a%d,*a%d,*a%d]%n".formatted(i, i - 1, i - 1, i - 1));
    }
    var texts =
        List.of(
            bomb.toString(),
            "a: " + "[".repeat(100_000),
            "a: " + "{a: ".repeat(50_000),
            "a: " + "9".repeat(1_000_000),
            "a: 1" + "_0".repeat(400_000),
            "a: " + "1:".repeat(400_000) + "1",
            "a: " + "x".repeat(2_000_000),
            "- ".repeat(400_000),
            "? ".repeat(400_000),
            "a: " + "!".repeat(400_000));
    for (var text : texts) {
      Assertions.assertTimeoutPreemptively(
          Duration.ofSeconds(5),
          () -> {
            try {
              MeteoraConfig.parse(text, "c.yaml");
            } catch (UserException e) {
              assertThat(e.getMessage()).doesNotContain("\n").hasSizeLessThan(500);
            }
          },
          text.substring(0, 20));
    }
  }
}
