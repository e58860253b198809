package org.meteora.generate;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.djl.huggingface.tokenizers.jni.LibUtils;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.TreeMap;
import org.meteora.UserException;
import org.meteora.io.CacheFolders;
import org.meteora.io.Jsonl;

/** A model folder's {@code tokenizer.json}: text to token ids and back. */
public final class Tokenizer implements AutoCloseable {
  private final HuggingFaceTokenizer tokenizer;
  private final String[] pieces;

  private Tokenizer(HuggingFaceTokenizer tokenizer, String[] pieces) {
    this.tokenizer = tokenizer;
    this.pieces = pieces;
  }

  /**
   * @throws UserException when the folder has no {@code tokenizer.json} or it cannot be read
   */
  public static Tokenizer load(Path modelFolder) {
    var file = modelFolder.resolve("tokenizer.json");
    if (!Files.isRegularFile(file)) {
      throw new UserException("no tokenizer.json in the model folder " + modelFolder);
    }
    var pieces = new TreeMap<Integer, String>();
    var json = Jsonl.readFile(file);
    var vocab = json.path("model").path("vocab");
    if (vocab.isArray()) {
      for (int i = 0; i < vocab.size(); i++) {
        pieces.put(i, vocab.get(i).path(0).asText());
      }
    } else {
      vocab.properties().forEach(entry -> pieces.put(entry.getValue().asInt(), entry.getKey()));
    }
    json.path("added_tokens")
        .forEach(added -> pieces.put(added.path("id").asInt(), added.path("content").asText()));
    if (pieces.isEmpty() || pieces.firstKey() < 0 || pieces.lastKey() > 1 << 24) {
      throw new UserException(file + ": the vocabulary is empty or its ids are out of range");
    }
    var table = new String[pieces.lastKey() + 1];
    pieces.forEach((id, piece) -> table[id] = piece);
    CacheFolders.unpacking(LibUtils::checkStatus);
    try {
      return new Tokenizer(
          HuggingFaceTokenizer.newInstance(
              file,
              Map.of("truncation", "false", "padding", "false", "modelMaxLength", "1000000000")),
          table);
    } catch (IOException | RuntimeException e) {
      throw new UserException(file + ": not a tokenizer: " + firstLine(e), e);
    }
  }

  private static String firstLine(Exception e) {
    return String.valueOf(e.getMessage()).lines().findFirst().orElse("unknown reason");
  }

  /** Token ids of a text. */
  public int[] encode(String text, boolean addSpecialTokens) {
    var ids = tokenizer.encode(text, addSpecialTokens, false).getIds();
    var result = new int[ids.length];
    for (int i = 0; i < ids.length; i++) {
      result[i] = (int) ids[i];
    }
    return result;
  }

  /** The text of token ids; incomplete UTF-8 sequences become U+FFFD. */
  public String decode(int[] ids, boolean skipSpecialTokens) {
    var longs = new long[ids.length];
    for (int i = 0; i < ids.length; i++) {
      longs[i] = ids[i];
    }
    return tokenizer.decode(longs, skipSpecialTokens);
  }

  /**
   * The vocabulary's entry for an id, in the tokenizer's own spelling (byte-level BPE writes a
   * space as Ġ); empty for an unknown id.
   */
  public String token(int id) {
    return id >= 0 && id < pieces.length && pieces[id] != null ? pieces[id] : "";
  }

  /** The highest token id there is, plus one. */
  public int vocabSize() {
    return pieces.length;
  }

  @Override
  public void close() {
    tokenizer.close();
  }
}
