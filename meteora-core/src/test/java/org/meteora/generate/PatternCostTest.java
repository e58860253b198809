package org.meteora.generate;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.List;
import org.junit.jupiter.api.Test;

class PatternCostTest {
  /** Of GPT-2, Llama 3, Qwen 2, BLOOM, Mistral's Tekken, o200k and DeepSeek, and simple ones. */
  private static final List<String> KNOWN =
      List.of(
          "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
          "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
              + " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
          "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
              + " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
          " ?[^(\\s|[.,!?…。，、।۔،])]+",
          "[^\\r"
              + "\\n"
              + "\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|[^\\r"
              + "\\n"
              + "\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|\\p{N}|"
              + " ?[^\\s\\p{L}\\p{N}]+[\\r"
              + "\\n"
              + "/]*|\\s*[\\r"
              + "\\n"
              + "]+|\\s+(?!\\S)|\\s+",
          "[^\\r"
              + "\\n"
              + "\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
              + "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}|\\s+",
          "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?"
              + "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
          "[一-龥぀-ゟ゠-ヿ]+",
          "\\s",
          "▁",
          "(?:abc)+d",
          "(?:a|b)+",
          "(?:a|b)*c",
          "(?:ab|cd|\\.|-)+",
          "(?:\\(|\\))+",
          "(?i:ab|cd)+x",
          "(?:a(?:b|c)|d)+",
          "(?i)'s|'t",
          "[[:alpha:]]+",
          " {2,}",
          "(?<=a)b+",
          "a+a{1,4}[bc]",
          "a{x}");

  private static final List<String> WITHOUT_END =
      List.of(
          "a+a{1,4000}[bc]", // ends the process at 8,000 characters
          "(x+x+)+y",
          "(a|a)*b",
          "(?:a|ab|b)+c",
          "(?:a|b)+(?:a|b)+c",
          "((?:a|b)+)+c",
          "(?i:a|A)+b",
          "(?i:ß|s)+b",
          "(?:a|.)+b",
          "(?:a|\\w)+b",
          "(?:a|[ab])+c",
          "(?:a|b?a)+c",
          "(?:a|b*a)+c",
          "(?:a|b{0,1}a)+c",
          "(?:a|)+b",
          "(?:a|^a)+b",
          "(?:a|\\141)+b",
          "(?:a|\\'a)+b",
          "(?:a(?i)b|b)+c",
          "(?x: (?: a|a)+b)",
          "(?x)(a#[\n+#]\n)+b",
          "(a*)*b",
          "x*x*y",
          "x+x+y",
          "(?:a?){30}b",
          "a?a?a?a?a?a?a?a?a?a?a?a?a?a?b",
          "(a{1,9}){1,9}b",
          "a{1,3}+b",
          "a{1,99}a{1,99}b",
          "(?:a|b|c|d|e|f|g|h){1,999}x",
          "(?~abc)",
          "(?<n>a|b\\g<n>c)",
          "(?:x*|y)*z",
          "(?=(x+x+)+y)x",
          "(a",
          "[a",
          "a\\",
          "a)b");

  @Test
  void whatTokenizersHaveIsBounded() {
    assertThat(KNOWN).allMatch(PatternCost::isBounded);
  }

  @Test
  void whatMayTakeForEverIsNot() {
    assertThat(WITHOUT_END).noneMatch(PatternCost::isBounded);
  }
}
