package org.meteora.data.source;

import com.fasterxml.jackson.databind.JsonNode;
import java.util.function.BiConsumer;

/** The records of one split of a source, in their order. */
@FunctionalInterface
public interface Records {
  /**
   * Hands every record over with where it stands ({@code file:line}), one after another, in
   * constant memory where the format allows it.
   *
   * @throws org.meteora.UserException when a file is broken
   */
  void forEach(BiConsumer<JsonNode, String> each);
}
