package org.meteora.generate;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.djl.huggingface.tokenizers.jni.LibUtils;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Map;
import org.meteora.UserException;
import org.meteora.io.CacheFolders;
import org.meteora.io.Texts;

/** A model folder's {@code tokenizer.json}: text to token ids and back. */
public final class Tokenizer implements AutoCloseable {
  private final Path file;
  private final HuggingFaceTokenizer tokenizer;
  private final TokenizerFile.Checked checked;
  private final int rows;

  private Tokenizer(
      Path file, HuggingFaceTokenizer tokenizer, TokenizerFile.Checked checked, int rows) {
    this.file = file;
    this.tokenizer = tokenizer;
    this.checked = checked;
    this.rows = rows;
  }

  /**
   * Loads the tokenizer of a model. It may have more tokens than the model embeds, as after a
   * padding token was added: only a text that needs one of those is refused.
   *
   * @param rows tokens that the model embeds; {@link Integer#MAX_VALUE} for a tokenizer alone
   * @throws UserException when the folder has no {@code tokenizer.json} or it cannot be read
   */
  public static Tokenizer load(Path modelFolder, int rows) {
    var file = modelFolder.resolve("tokenizer.json");
    if (!Files.isRegularFile(file)) {
      throw new UserException("no tokenizer.json in the model folder " + modelFolder);
    }
    // the native parser must not see what it would end the process over
    var checked = TokenizerFile.check(file);
    // the native library asks for a CUDA build where it sees a GPU; the CPU's does the same work
    System.setProperty("RUST_FLAVOR", System.getProperty("RUST_FLAVOR", "cpu"));
    CacheFolders.unpacking(LibUtils::checkStatus);
    HuggingFaceTokenizer tokenizer;
    try {
      tokenizer =
          HuggingFaceTokenizer.newInstance(
              file,
              Map.of("truncation", "false", "padding", "false", "modelMaxLength", "1000000000"));
    } catch (IOException | RuntimeException e) {
      throw new UserException(file + ": not a tokenizer: " + firstLine(e), e);
    }
    return new Tokenizer(file, tokenizer, checked, rows);
  }

  private static String firstLine(Exception e) {
    return String.valueOf(e.getMessage()).lines().findFirst().orElse("unknown reason");
  }

  /**
   * Token ids of a text. Half a surrogate pair stands for U+FFFD.
   *
   * @throws UserException when the model does not embed one of its tokens, or it has more than a
   *     million characters, normalized and with what the tokenizer puts in their places
   */
  public int[] encode(String text, boolean addSpecialTokens) {
    var wellFormed = Texts.wellFormed(text);
    requireShort(wellFormed);
    long[] ids;
    try {
      ids = tokenizer.encode(wellFormed, addSpecialTokens, false).getIds();
    } catch (RuntimeException e) {
      throw new UserException(file + ": cannot encode a text: " + firstLine(e), e);
    }
    var result = new int[ids.length];
    for (int i = 0; i < ids.length; i++) {
      result[i] = (int) ids[i];
      if (result[i] < 0 || result[i] >= rows) {
        throw new UserException(
            "a text has the token %s (%s in %s), the model embeds only %s"
                .formatted(ids[i], token(result[i]), file, rows));
      }
    }
    return result;
  }

  /** A library below gives up after ten million steps in a text, and that ends the process. */
  private void requireShort(String text) {
    double longest = PatternCost.LONGEST_TEXT / checked.growth();
    int length = text.length();
    if (length <= longest && checked.normalizes()) {
      length = TokenizerFile.normalizedLength(text);
    }
    if (length > longest) {
      throw new UserException(
          "a text has %,d characters, more than the %,d that the tokenizer is given"
              .formatted(length, (long) longest));
    }
  }

  /** The text of token ids; incomplete UTF-8 sequences become U+FFFD. */
  public String decode(int[] ids, boolean skipSpecialTokens) {
    return tokenizer.decode(Arrays.stream(ids).asLongStream().toArray(), skipSpecialTokens);
  }

  /**
   * The vocabulary's entry for an id, in the tokenizer's own spelling (byte-level BPE writes a
   * space as Ġ); empty for an unknown id.
   */
  public String token(int id) {
    var pieces = checked.pieces();
    return id >= 0 && id < pieces.length && pieces[id] != null ? pieces[id] : "";
  }

  @Override
  public void close() {
    tokenizer.close();
  }
}
