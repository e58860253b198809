/** From the sources' files to samples: JSON, JSON lines, Parquet. */
package org.meteora.data.source;
