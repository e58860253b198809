package org.meteora.eval;

import org.meteora.generate.Tokenizer;

/** Text to token ids and back, the way evaluation needs it. */
public interface TextCodec {
  /** A prompt's ids, with the special tokens that the tokenizer begins a text with. */
  int[] encode(String prompt);

  /** The text of ids, special tokens left out. */
  String decode(int[] ids);

  static TextCodec of(Tokenizer tokenizer) {
    return new TextCodec() {
      @Override
      public int[] encode(String prompt) {
        return tokenizer.encode(prompt, true);
      }

      @Override
      public String decode(int[] ids) {
        return tokenizer.decode(ids, true);
      }
    };
  }
}
