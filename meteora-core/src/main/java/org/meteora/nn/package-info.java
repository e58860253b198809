/** Names, order and inputs of a decoder layer's linears. */
package org.meteora.nn;
