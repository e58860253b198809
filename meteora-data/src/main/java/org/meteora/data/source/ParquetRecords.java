package org.meteora.data.source;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import dev.hardwood.InputFile;
import dev.hardwood.reader.ParquetFileReader;
import dev.hardwood.row.PqList;
import dev.hardwood.row.PqStruct;
import dev.hardwood.row.StructAccessor;
import java.io.IOException;
import java.nio.file.Path;
import java.util.function.BiConsumer;
import org.meteora.UserException;

/** A Parquet file, row by row as JSON objects; lists and structs nested. */
record ParquetRecords(Path file) implements Records {
  private static final JsonNodeFactory JSON = JsonNodeFactory.instance;

  @Override
  public void forEach(BiConsumer<JsonNode, String> each) {
    long row = 0;
    try (var reader = ParquetFileReader.open(InputFile.of(file));
        var rows = reader.rowReader()) {
      while (rows.hasNext()) {
        rows.next();
        row++;
        each.accept(object(rows), file + ": row " + row);
      }
    } catch (UserException e) {
      throw e;
    } catch (IOException | RuntimeException e) {
      throw new UserException(
          file
              + ": not a readable Parquet file (row "
              + row
              + "): "
              + String.valueOf(e.getMessage()).lines().findFirst().orElse(""),
          e);
    }
  }

  private static JsonNode object(StructAccessor struct) {
    var node = JSON.objectNode();
    for (int i = 0; i < struct.getFieldCount(); i++) {
      var name = struct.getFieldName(i);
      node.set(name, struct.isNull(name) ? JSON.nullNode() : value(struct.getValue(name)));
    }
    return node;
  }

  private static JsonNode value(Object value) {
    return switch (value) {
      case null -> JSON.nullNode();
      case String text -> JSON.textNode(text);
      case Integer number -> JSON.numberNode(number);
      case Long number -> JSON.numberNode(number);
      case Float number -> JSON.numberNode(number);
      case Double number -> JSON.numberNode(number);
      case Boolean truth -> JSON.booleanNode(truth);
      case byte[] bytes ->
          JSON.textNode(new String(bytes, java.nio.charset.StandardCharsets.UTF_8));
      case PqStruct struct -> object(struct);
      case PqList list -> {
        var array = JSON.arrayNode(list.size());
        for (int i = 0; i < list.size(); i++) {
          array.add(list.isNull(i) ? JSON.nullNode() : value(list.get(i)));
        }
        yield array;
      }
      default -> JSON.textNode(value.toString());
    };
  }
}
